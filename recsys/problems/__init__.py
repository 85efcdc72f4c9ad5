"""Problems whose exact answer is known."""
