# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type


class ModuleDocFragment(object):
    """Options of every module that runs capctl."""

    DOCUMENTATION = r'''
options:
  socket:
    description:
      - Where capd listens. The capd of the network namespace C(blue) has C(/run/capd/blue/capd.sock).
    type: path
    default: /run/capd/capd.sock
  executable:
    description:
      - The C(capctl) to run, as a path or as a name to be found in C(PATH).
    type: str
    default: capctl
requirements:
  - capd and capctl on the host that the task runs on, as the role C(capd.capd.capd) installs them
  - root there, or membership in the group that C([access]) C(control_group) of C(capd.toml) names
'''
