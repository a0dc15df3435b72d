// Frames of the camera, one at a time.

import { Refusal } from "./requests.js";

const LONGEST_SIDE = 1280; // pixels; more only costs time on the way

export class Camera {
  constructor(video) {
    this.video = video;
    this.stream = null;
  }

  async open() {
    if (!navigator.mediaDevices) {
      throw new Refusal("The browser allows the camera only for pages over https or from this machine itself (localhost).");
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    } catch (error) {
      throw new Refusal(REASONS[error.name] ?? `The camera cannot be used (${error.name}).`);
    }
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  // The frame that is shown now, as { blob, width, height, bitmap }; null if the camera is closed.
  async frame() {
    if (!this.stream?.active) return null;
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(videoWidth, videoHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(videoWidth * scale);
    canvas.height = Math.round(videoHeight * scale);
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    return { blob, width: canvas.width, height: canvas.height, bitmap: canvas };
  }

  close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
    this.stream = null;
  }
}

const REASONS = {
  NotAllowedError: "The use of the camera was not allowed. The browser's settings for this page can change that.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is used by another program.",
};
