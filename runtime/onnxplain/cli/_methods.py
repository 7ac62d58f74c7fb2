"""The methods' names, for help that answers without numpy."""

IN_THE_GRAPH = (
    "cam",
    "gradcam",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "layercam",
    "gradcam_elementwise",
    "gradcam_signed",
    "counterfactual",
)
"""Those that a file can compute itself."""

METHOD_NAMES = (*IN_THE_GRAPH, "eigencam", "eigengradcam", "finercam")
