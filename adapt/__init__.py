"""LoRA for CLIP, open-vocabulary detectors and VLMs: adapters that apply whole, resume, and prove that they helped."""
