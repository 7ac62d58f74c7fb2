"""The rows of the rules' test, a file for each file of `onnxplain_export.rules`."""
