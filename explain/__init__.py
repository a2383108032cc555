"""Why a model does worse on one domain than on another: hierarchical decomposition with intervals."""
