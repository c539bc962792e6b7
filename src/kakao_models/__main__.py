"""`python -m kakao_models` runs the command `kakao-models`."""

from kakao_models.cli import main

main()
