# SPDX-License-Identifier: Apache-2.0
"""capctl as the modules of this collection run it: JSON out, capd's own words on failure."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import os

from ansible.module_utils.common.text.converters import to_native

# capctl's exit code where capd does not answer; it may be about to come back.
UNREACHABLE = 3
# ... and where a step of a destination check failed: the answer is on stdout all the same.
DELIVERY = 7

ARGUMENTS = dict(
    socket=dict(type='path', default='/run/capd/capd.sock'),
    executable=dict(type='str', default='capctl'),
)


class CapctlError(Exception):
    """capctl ended with another code than 0. The text is capd's message and its hint."""

    def __init__(self, command, code, stderr):
        self.code = code
        self.message, self.hint = explain(stderr)
        if not self.message:
            self.message = 'capctl %s ended with code %d and said nothing' % (command, code)
        super(CapctlError, self).__init__('%s. Hint: %s' % (self.message, self.hint) if self.hint else self.message)

    def fail(self, module, **result):
        """Ends the module with this error."""
        module.fail_json(msg=str(self), hint=self.hint, rc=self.code, **result)


def explain(stderr):
    """The message and the hint among the lines that capctl writes to stderr, '' where there is none."""
    message, hint = [], []
    for line in stderr.splitlines():
        if line.startswith('hint: '):
            hint.append(line[len('hint: '):])
        elif line.startswith('capctl: '):
            message.append(line[len('capctl: '):])
    return '; '.join(message) or stderr.strip(), '; '.join(hint)


class Capctl(object):
    """Runs capctl against one capd."""

    def __init__(self, module):
        self.module = module
        self.command = [module.get_bin_path(module.params['executable'], required=True), '--json', '--quiet', '--socket', module.params['socket']]
        # sudo and the like forget by which connection Ansible came. capctl leaves that
        # connection out of captures, so it is told.
        connection = ssh_connection()
        self.environment = {'SSH_CONNECTION': connection} if connection else {}

    def run(self, *arguments, **options):
        """The answer to a command as an object (None where there is none).

        data is what to write to stdin, as an object; accept lists exit codes beside 0 that
        come with an answer. Any other code raises CapctlError.
        """
        data = options.get('data')
        rc, out, err = self.module.run_command(
            self.command + list(arguments), data=None if data is None else json.dumps(data), environ_update=self.environment)
        if rc != 0 and not (rc in options.get('accept', ()) and out.strip()):
            raise CapctlError(arguments[0], rc, err)
        if not out.strip():
            return None
        try:
            return json.loads(out)
        except ValueError as e:
            self.module.fail_json(msg='capctl %s did not answer with JSON: %s' % (arguments[0], to_native(e)), stdout=out, stderr=err)


def ssh_connection(proc='/proc'):
    """SSH_CONNECTION of this process or of the nearest ancestor that has it, else ''."""
    own = os.environ.get('SSH_CONNECTION', '')
    pid = os.getpid()
    while not own and pid > 1:
        try:
            with open('%s/%d/environ' % (proc, pid), 'rb') as f:
                for entry in f.read().split(b'\0'):
                    if entry.startswith(b'SSH_CONNECTION='):
                        own = to_native(entry.partition(b'=')[2])
            with open('%s/%d/stat' % (proc, pid), 'rb') as f:
                # The command's name, in parentheses, may hold anything; the parent is the second field after it.
                pid = int(f.read().rpartition(b')')[2].split()[1])
        except (IOError, OSError, IndexError, ValueError):
            break
    return own
