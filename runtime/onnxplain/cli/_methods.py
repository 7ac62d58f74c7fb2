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

ONE_RUN = (*IN_THE_GRAPH, "eigencam", "eigengradcam", "finercam")
"""Those of one run of the network."""

METHOD_NAMES = (
    *ONE_RUN,
    "scorecam",
    "rise",
    "saliency",
    "smoothgrad",
    "integrated_gradients",
    "guided_backprop",
    "guided_gradcam",
)
