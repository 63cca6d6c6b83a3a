"""A trained model as one file for other software: ONNX, or a program of torch.export."""

from fastt2i.export.program import Exported, export_model

__all__ = ["Exported", "export_model"]
