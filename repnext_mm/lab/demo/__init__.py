"""The demos: make data, train, test in both forms, compare, and draw; and the page in the browser."""
