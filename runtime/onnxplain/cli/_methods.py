"""The methods' names, for help that answers without numpy."""

METHOD_NAMES = ("cam", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam")
