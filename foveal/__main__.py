"""`python -m foveal`, which launchers of several processes take instead of the command."""

from foveal.cli import main

if __name__ == "__main__":
    main()
