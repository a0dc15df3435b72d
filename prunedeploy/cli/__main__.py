"""``python -m prunedeploy.cli`` is the same as ``prunedeploy``."""

from prunedeploy.cli.group import main

if __name__ == "__main__":
    main()
