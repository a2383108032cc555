"""The seeded order behind every cut and subsample."""

from collections import Counter

from hypothesis import given, strategies as st

from recipes.data.splits import stratified_order, text_key

groups = st.lists(st.sampled_from("abc"), max_size=120)


@given(groups, st.integers(0, 5))
def test_an_order_is_a_permutation_that_the_seed_fixes(labels, seed):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    assert order == stratified_order(labels, seed)


@given(groups, st.integers(0, 5), st.floats(0, 1))
def test_every_prefix_has_the_proportions_of_the_whole(labels, seed, share):
    sizes = Counter(labels)
    size = round(share * len(labels))
    part = Counter(labels[i] for i in stratified_order(labels, seed)[:size])
    for label, count in sizes.items():
        assert abs(part[label] - size * count / len(labels)) <= len(sizes) / 2 + 1e-9


def test_different_seeds_give_different_orders():
    assert stratified_order([0] * 50, 0) != stratified_order([0] * 50, 1)


@given(st.text(), st.text())
def test_case_and_space_do_not_make_a_new_text(left, right):
    assert text_key(f" {left}\t") == text_key(f"{left}\n\n")
    assert text_key((left, right)) == text_key((f"{left} ", f"\t{right}"))
