"""tqindex as a vector store of other frameworks; each module needs the framework that it is named after."""
