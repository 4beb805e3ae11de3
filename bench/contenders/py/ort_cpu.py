"""ONNX Runtime on the CPU: inference of timm's model, exported once per model and size."""

import os
import sys

from common import options, serve


def export(model_name: str, size: int, file: str) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(model_name, exportable=True).eval()
    sample = torch.randn(2, 3, size, size)
    partial = file + ".partial"
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    os.makedirs(os.path.dirname(file), exist_ok=True)
    torch.onnx.export(
        model, (sample,), partial, input_names=["images"], output_names=["logits"], dynamic_axes=axes, opset_version=17, dynamo=False
    )
    os.replace(partial, file)


def main() -> None:
    opts = options(__doc__)
    if opts.mode != "infer" or opts.precision != "fp32":
        sys.exit("ONNX Runtime runs inference in fp32 here")
    file = os.path.join(opts.cache, f"{opts.model}-{opts.image_size}.onnx")
    if not os.path.exists(file):
        export(opts.model, opts.image_size, file)

    import numpy as np
    import onnxruntime as ort

    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = opts.threads
    session_options.inter_op_num_threads = 1
    session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session_options.add_free_dimension_override_by_name("n", opts.batch_size)
    session = ort.InferenceSession(file, session_options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((opts.batch_size, 3, opts.image_size, opts.image_size), dtype=np.float32)
    serve(lambda: session.run(None, {"images": images}), opts.batch_size, {"onnxruntime": ort.__version__}, opts.warmup)


if __name__ == "__main__":
    main()
