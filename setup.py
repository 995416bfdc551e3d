"""What pyproject.toml cannot say: in a wheel, `pretrained/` and `configs/` lie within the package championship_sr."""

from setuptools import find_packages, setup

ROOMS = ("championship_sr*", "imaging*", "experts*", "cache_tools*", "fusion*")
DATA = {"championship_sr.pretrained": "pretrained", "championship_sr.configs": "configs"}

setup(
    packages=[*find_packages(include=ROOMS), *DATA],
    package_dir=DATA,
)
