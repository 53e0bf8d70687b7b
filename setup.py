"""Packaging of recbole-guider; the version is in recbole_guider/__init__.py, the tools' settings in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "recbole_guider/__init__.py").read_text()).group(1)

# Lower bounds reach down to what RecBole 1.2.1's own pins give, so that nothing is replaced where RecBole lives
# already; upper bounds are only for what is known to break. RecBole itself is installed beside this package, without
# its pins (pip install --no-deps recbole==1.2.1): they cannot be met on Python 3.12 and newer.
REQUIREMENTS = [
    "torch>=2.6",  # torch.load reads weights only by default from here on, also where RecBole calls it
    "numpy>=1.23.5",
    "pandas>=2.0,<4",  # pandas 4 removes inplace=True, by which RecBole filters its tables
    "scipy>=1.10",
    "pyarrow>=12",
    "ray[data,tune]>=2.6.3",
    "filelock>=4.0.8",
    "packaging>=21",
    "plotly>=5",
    "pot>=0.9.4",
    "pydantic>=2.7",
    "pyyaml>=6",
    "scikit-learn>=1.3",
    "tabulate>=0.9",
    "tqdm>=4.60",
    # what RecBole itself imports
    "colorama>=0.4.4",
    "colorlog>=4.7.2",
    "psutil>=5.9",
    "tensorboard>=2.15",
    "texttable>=0.9",
    "thop>=0.1.1.post2207130030",
]

# The set that RecBole pins, for Python 3.11: its ray has wheels up to there, and needs these older releases.
RECBOLES_PINS = [
    f'{requirement}; python_version < "3.12"'
    for requirement in (
        "recbole==1.2.1",
        "ray[data,tune]==2.6.3",
        "numpy<2",
        "pandas<3",
        "scipy<1.13",
        "pyarrow<18",
        "setuptools<82",  # ray 2.6.3 imports pkg_resources
    )
]

TESTS = [
    "import-linter>=2", "mypy>=1.11", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.6",
    "types-PyYAML", "types-tabulate", "types-tqdm",
]

setup(
    name="recbole-guider",
    version=VERSION,
    description="Denoise multi-modal recommenders in RecBole",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[
        *find_packages(include=["recbole_guider", "recbole_guider.*"]),
        "recbole_guider.properties",
        "recbole_guider.properties.model",
        "recbole_guider.dataset_configs",
    ],
    # the property files live at the top of the repository, where users look for them, and are installed inside
    package_dir={
        "recbole_guider.properties": "properties",
        "recbole_guider.dataset_configs": "dataset_configs",
    },
    package_data={"": ["*.yaml", "py.typed"]},
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require={"recbole": RECBOLES_PINS, "test": TESTS},
    scripts=["run_recbole_guider.py"],
    entry_points={"console_scripts": ["recbole-guider=recbole_guider.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
    ],
)
