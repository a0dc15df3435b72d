"""Detection in videos and camera pictures; boxes are drawn into another video. Needs the extra ``video``."""
