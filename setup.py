"""Packaging of recbole-guider; the version is in recbole_guider/__init__.py, the tools' settings in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "recbole_guider/__init__.py").read_text()).group(1)

# The set that RecBole 1.2.1 is known to work with. RecBole pins ray<=2.6.3, which has wheels up to Python 3.11; for
# newer Pythons and current releases of everything see README.md ("Newer Python and newer libraries").
REQUIREMENTS = [
    "recbole==1.2.1",
    "torch>=2.6",  # torch.load reads weights only by default from here on, also where RecBole calls it
    "numpy>=1.23.5,<2",
    "pandas>=2.0,<3",
    "scipy>=1.10,<1.13",
    "pyarrow>=12,<18",
    "ray[data,tune]==2.6.3",
    "filelock>=4.0.8",
    "setuptools<82",  # ray 2.6.3 imports pkg_resources
    "plotly>=5",
    "pot>=0.9.4",
    "pydantic>=2.7",
    "pyyaml>=6",
    "scikit-learn>=1.3",
    "tabulate>=0.9",
    "tqdm>=4.60",
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
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "test": [
            "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.6", "mypy>=1.11", "types-PyYAML", "types-tabulate", "types-tqdm",
        ]
    },
    scripts=["run_recbole_guider.py"],
    entry_points={"console_scripts": ["recbole-guider=recbole_guider.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
