"""What several test files share: functions and constants; fixtures are in the folders' conftest.py."""
