"""What the server has to know about an interpreter: a line of JSON, then our own modules and the guests' packages as that
interpreter marshals their code. Reads [modules, packages] from stdin, each {name: source}."""

import json
import marshal
import os
import platform
import sys
import sysconfig

with open("/proc/self/maps") as maps:
    mapped = {line.split(None, 5)[5].strip() for line in maps if len(line.split(None, 5)) == 6}
paths = sysconfig.get_paths()
modules, packages = json.load(sys.stdin)
code = {name: compile(text, "<sluice %s>" % name, "exec", dont_inherit=True) for name, text in modules.items()}
# Bytes, because few guests import one of them: a package is unmarshalled where it is imported.
code["package_code"] = {
    name: marshal.dumps(compile(text, "<%s>" % name, "exec", dont_inherit=True)) for name, text in packages.items()
}
facts = {
    "implementation": platform.python_implementation(),
    "version": list(sys.version_info[:3]),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "executable": os.path.realpath(sys.executable),
    "libraries": [os.path.realpath(paths["stdlib"]), os.path.realpath(paths["platstdlib"])],
    "objects": sorted(os.path.realpath(path) for path in mapped if path.startswith("/")),
}
sys.stdout.buffer.write(json.dumps(facts).encode("ascii") + b"\n" + marshal.dumps(code))
