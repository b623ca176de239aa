#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
module: capd_destination_check
short_description: Tries whether captures can be delivered to a destination
version_added: 1.0.0
description:
  - Has capd go through every step of a delivery with a small file, as far as the profile's C(probe) setting allows,
    and fails with the step that failed and how to mend it.
  - Nothing on the host changes. With C(probe = "write") in the profile the probe's file stays at the destination.
  - In check mode it is only looked up whether capd knows the destination.
options:
  name:
    description:
      - The destination's name, as in C(/etc/capd/destinations.d/NAME.toml).
    type: str
    required: true
  attempts:
    description:
      - How often to try before the task fails, with I(pause) seconds in between. For a server that is still coming up.
    type: int
    default: 1
  pause:
    description:
      - Seconds between two attempts.
    type: int
    default: 5
attributes:
  check_mode:
    description: Nothing is sent to the destination in check mode.
    support: partial
extends_documentation_fragment:
  - capd.capd.capctl
seealso:
  - module: capd.capd.capd_capture
author:
  - capd maintainers (@capd)
'''

EXAMPLES = r'''
- name: Captures can be delivered
  capd.capd.capd_destination_check:
    name: soc

- name: Captures can be delivered as soon as the server is up
  capd.capd.capd_destination_check:
    name: evidence
    attempts: 12
    pause: 10
'''

RETURN = r'''
ok:
  description: Whether every step succeeded. In check mode, whether capd knows the destination.
  returned: always
  type: bool
  sample: true
steps:
  description: The steps in their order. The last may have failed; what would follow it was not tried.
  returned: when the destination is known and this is not check mode
  type: list
  elements: dict
  contains:
    step:
      description: What was tried.
      type: str
      sample: connect
    ok:
      description: Whether it succeeded.
      type: bool
      sample: true
    detail:
      description: What was seen.
      type: str
      sample: SSH-2.0-OpenSSH_9.2p1
    hint:
      description: How to mend it, where it failed.
      type: str
'''

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.capd.capd.plugins.module_utils.capctl import ARGUMENTS, DELIVERY, Capctl, CapctlError


def check(capctl, name):
    """One go through all steps: {ok, steps}."""
    return capctl.run('destination', 'check', name, accept=(DELIVERY,))


def main():
    module = AnsibleModule(
        argument_spec=dict(
            name=dict(type='str', required=True),
            attempts=dict(type='int', default=1),
            pause=dict(type='int', default=5),
            **ARGUMENTS
        ),
        supports_check_mode=True,
    )
    name = module.params['name']
    if module.params['attempts'] < 1:
        module.fail_json(msg='attempts is %d: at least 1' % module.params['attempts'])
    if module.params['pause'] < 0:
        module.fail_json(msg='pause is %d: seconds, 0 or more' % module.params['pause'])
    try:
        capctl = Capctl(module)
        if module.check_mode:
            known = sorted(d['name'] for d in capctl.run('destination', 'list'))
            if name not in known:
                module.fail_json(msg='there is no destination %s; there is: %s' % (name, ', '.join(known) or 'none'), ok=False)
            module.exit_json(changed=False, ok=True)
        for left in reversed(range(module.params['attempts'])):
            answer = check(capctl, name)
            if answer['ok'] or not left:
                break
            time.sleep(module.params['pause'])
    except CapctlError as e:
        e.fail(module, ok=False)
    if not answer['ok']:
        failed = next(s for s in answer['steps'] if not s['ok'])
        msg = 'destination %s does not work: %s failed: %s' % (name, failed['step'], failed.get('detail', ''))
        if failed.get('hint'):
            msg += '. Hint: ' + failed['hint']
        module.fail_json(msg=msg, hint=failed.get('hint', ''), **answer)
    module.exit_json(changed=False, **answer)


if __name__ == '__main__':
    main()
