"""Detect with numpy, Pillow and onnxruntime alone: python detect.py model.onnx image.jpg [threshold [size]]"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def suppressed(boxes, labels, limit):
    """Rows to keep, best first: no box of one class overlaps a better one by more than `limit`."""
    keep = []
    for i in range(len(boxes)):
        low, high = np.maximum(boxes[i, :2], boxes[keep, :2]), np.minimum(boxes[i, 2:], boxes[keep, 2:])
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        both = np.prod(np.clip(high - low, 0, None), axis=1)
        if not np.any((labels[keep] == labels[i]) & (both > limit * (area[i] + area[keep] - both))):
            keep.append(i)
    return keep


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
card = json.loads(session.get_modelmeta().custom_metadata_map["foveal"])
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
side = int(sys.argv[4]) if len(sys.argv) > 4 else card["size"]
small = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 255
boxes, scores = (output[0] for output in session.run(["boxes", "scores"], {"images": pixels}))
threshold = float(sys.argv[3]) if len(sys.argv) > 3 else card["threshold"] or 0.3
cells, labels = np.nonzero(scores >= threshold)
order = np.argsort(-scores[cells, labels], kind="stable")[:300]
cells, labels = cells[order], labels[order]
found = np.clip(boxes[cells], 0, 1) * [*image.size, *image.size]
for i in suppressed(found, labels, card["nms_iou"] or 1.0)[:100]:
    name, score = card["classes"][labels[i]], float(scores[cells[i], labels[i]])
    told = card["calibration"]
    sure = np.interp(score, told["scores"], told["probabilities"][name]) if told else score
    print(json.dumps({"label": name, "score": score, "probability": float(sure), "box": found[i].tolist()}))
