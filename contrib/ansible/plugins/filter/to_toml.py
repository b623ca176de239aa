# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
name: to_toml
short_description: Writes a dictionary as TOML
version_added: 1.0.0
author: capd maintainers (@capd)
description:
  - Writes what capd's configuration can hold. Dictionaries become tables, at any depth; everything else strings,
    booleans, numbers and lists of these. Keys with the value C(null) are left out.
  - The same input gives the same text, keys in the order of the input.
positional: _input
options:
  _input:
    description: What to write.
    type: dict
    required: true
'''

EXAMPLES = r'''
- name: capd's limits
  ansible.builtin.copy:
    content: "{{ {'limits': {'max_packet_rate': 50000, 'retention': '3d'}} | capd.capd.to_toml }}"
    dest: /etc/capd/capd.toml
    mode: "0644"
'''

RETURN = r'''
_value:
  description: TOML text, with a newline at its end.
  type: str
'''

import re

from ansible.errors import AnsibleFilterError
from ansible.module_utils.common._collections_compat import Mapping
from ansible.module_utils.common.text.converters import to_text
from ansible.module_utils.six import integer_types, string_types

BARE = re.compile(r'^[A-Za-z0-9_-]+$')
ESCAPES = {'\\': '\\\\', '"': '\\"', '\n': '\\n', '\t': '\\t', '\r': '\\r', '\b': '\\b', '\f': '\\f'}


def string(text):
    """A basic string (TOML 1.0, Strings)."""
    out = []
    for c in to_text(text, errors='surrogate_or_strict'):
        if c in ESCAPES:
            c = ESCAPES[c]
        elif ord(c) < 0x20 or ord(c) == 0x7f:
            c = '\\u%04x' % ord(c)
        out.append(c)
    return '"%s"' % ''.join(out)


def key(name):
    if not isinstance(name, string_types):
        raise AnsibleFilterError('to_toml: the key %r is no string' % (name,))
    return name if BARE.match(name) else string(name)


def value(v, where):
    if isinstance(v, bool):
        return 'true' if v else 'false'
    if isinstance(v, integer_types):
        return '%d' % v
    if isinstance(v, float):
        return repr(v)
    if isinstance(v, string_types):
        return string(v)
    if isinstance(v, (list, tuple)):
        return '[%s]' % ', '.join(value(e, where) for e in v)
    raise AnsibleFilterError('to_toml: %s is of type %s: write a string, a number, true, false, or a list of these' % (where, type(v).__name__))


def table(data, path):
    """The lines of one table and of those in it, without a heading for tables that hold only tables."""
    own, inner = [], []
    for name, v in data.items():
        at = path + [key(name)]
        if isinstance(v, Mapping):
            inner += table(v, at)
        elif v is not None:
            own.append('%s = %s' % (key(name), value(v, '.'.join(at))))
    if path and (own or not inner):
        own = ['', '[%s]' % '.'.join(path)] + own
    return own + inner


def to_toml(data):
    if not isinstance(data, Mapping):
        raise AnsibleFilterError('to_toml: this is of type %s: give a dictionary' % type(data).__name__)
    lines = table(data, [])
    if lines and not lines[0]:
        lines = lines[1:]
    return ''.join(line + '\n' for line in lines)


class FilterModule(object):
    def filters(self):
        return {'to_toml': to_toml}
