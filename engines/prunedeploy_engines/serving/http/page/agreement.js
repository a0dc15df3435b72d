// Which detections two models have in common.

const IOU = 0.5; // what COCO's lowest threshold takes for the same object

export function above(detections, threshold) {
  return detections.filter((one) => one.score > threshold);
}

// Boxes are xyxy.
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

// Pairs of the same class with an IoU of at least .5, best scores of the first list first; each is used once.
export function inBoth(first, second) {
  const left = [...second];
  let pairs = 0;
  for (const one of first) {
    let best = -1;
    for (const [index, other] of left.entries()) {
      const better = best < 0 || iou(one.box, other.box) > iou(one.box, left[best].box);
      if (other.class === one.class && iou(one.box, other.box) >= IOU && better) best = index;
    }
    if (best >= 0) {
      left.splice(best, 1);
      pairs += 1;
    }
  }
  return pairs;
}
