"""Use of a trained classifier: predict, export to ONNX, OpenVINO or torch.export, verify, the Hugging Face hub."""
