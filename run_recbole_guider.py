#!/usr/bin/env python
"""Train and test a model: python run_recbole_guider.py --model=GUIDER_FREEDOM --dataset=ml-100k"""

import sys

from recbole_guider.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script())
