"""The model in formats that other programs read: ONNX, and PyTorch's own exported programs."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, VideoModel, probabilities
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically


class Probabilities(nn.Module):
    """What a model makes of segments: features (B, S, F, D) -> p_A (B, S, F) and p_class (B, S, F, C)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, temporal_features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See the class; temporal_features (B, S, F, temporal_feature_dim) where the Temporal model has its own."""
        prediction = self.model(*(x for x in (features, temporal_features) if x is not None))
        return probabilities(prediction.anomaly_logits, prediction.class_logits)


def example_inputs(config: AnomalyCLIPConfig) -> dict[str, Tensor]:
    """Inputs of the right shapes by name, two passes; the second one only where the Temporal model has its own."""
    dims = {"features": config.feature_dim, "temporal_features": config.temporal_feature_dim}
    return {name: torch.randn(2, config.num_segments, config.num_frames, dim) for name, dim in dims.items() if dim}


def write(path: Path, model: VideoModel) -> int:
    """Writes the model, for any number of passes at once; docs/export.md cuts a video's rows into passes.

    Args:
        path: FILE.pt2 for torch.export, else ONNX.
        model: Goes to the CPU.
    Returns:
        Exit status 0.
    Raises:
        InputError: If a package is missing that ONNX needs.
    """
    wrapped, inputs = Probabilities(model.cpu()).eval(), example_inputs(model.config)
    file = io.BytesIO()
    passes = torch.export.Dim("passes")
    free: dict = {"dynamic_shapes": tuple({0: passes} for _ in inputs)}
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(wrapped, tuple(inputs.values()), **free), file)
    else:
        try:
            program = torch.onnx.export(
                wrapped,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=["p_A", "p_class"],
                **free,
            )
        except ImportError as error:
            raise InputError(f"--export {path}: found no package {error.name}; pip install onnx onnxscript") from error
        assert program is not None, "dynamo=True gives a program"
        file.write(program.model_proto.SerializeToString())
    write_atomically(path, lambda target: target.write(file.getvalue()))
    shapes = ", ".join(f"{name} (passes, {', '.join(map(str, value.shape[1:]))})" for name, value in inputs.items())
    print(f"exported: {path}, {shapes} -> p_A, p_class")
    return 0
