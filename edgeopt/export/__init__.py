"""From a trained model to checked ONNX files: float, QDQ for each int8 scheme, and half precision."""
