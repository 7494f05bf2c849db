"""Packages that guests may import though their interpreter has them not, from code that the server compiled.

Asked after every other finder: what the interpreter or a folder of `import_paths` has comes first. A guest may reach this
module through `sys.meta_path`, so it holds nothing else.
"""

import sys
from _frozen_importlib import ModuleSpec
from marshal import loads

package_code = {}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in package_code:
            return ModuleSpec(name, Finder, is_package="." not in name)
        return None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(loads(package_code[module.__name__]), module.__dict__)


def install(code):
    """`code`: marshalled code by the full name of its module."""
    package_code.update(code)
    sys.meta_path.append(Finder)
