from numconv.testing import BackendContract


class TestExample(BackendContract):
    backend = "example"
