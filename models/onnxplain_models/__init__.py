"""The networks of the papers, trained: Network in Network, CAM and Grad-CAM."""
