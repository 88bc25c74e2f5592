"""Many ranks over gloo: all of them in processes that are forked from one that has imported torch and compiled."""
