#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
module: capd_capture
short_description: Starts, awaits, stops and forgets packet captures
version_added: 1.0.0
description:
  - Brings a capture, which is known by its name, into a state on every host that the task runs on.
  - A capture always ends by itself, by the limits given here or by the host's own.
  - The SSH connection through which Ansible came is left out of the capture, also with C(become).
  - In check mode the filter is compiled, and everything else about the request is checked that capctl can check
    without capd.
options:
  name:
    description:
      - The capture's name. It is what a second run of the playbook finds the capture by, as long as capd keeps
        its record (C(limits.retention), 7 days by default) and nobody removes it.
    type: str
    required: true
  state:
    description:
      - C(started) - there is a capture of that name with these settings. One that runs, is being delivered, or has
        ended is left alone; where there is none, or one that ended had other settings or never ran, one is started.
        What could not be delivered is delivered again.
      - C(stopped) - no capture of that name runs. What it captured is kept, and delivered.
      - C(absent) - capd knows no capture of that name. One that runs is stopped first. What was delivered stays at
        the destination.
    type: str
    choices: [started, stopped, absent]
    default: started
  again:
    description:
      - With I(state=started), start a capture also where one of that name has ended. The task is then not idempotent
        once the capture has ended.
    type: bool
    default: false
  replace:
    description:
      - With I(state=started), stop a capture of that name that runs with other settings, and start one with these.
        Without it the task fails and tells the difference.
    type: bool
    default: false
  force:
    description:
      - With I(state=absent), also throw away what should have been delivered and is not.
    type: bool
    default: false
  wait:
    description:
      - Stay until the capture has ended and is delivered. The task fails if the capture or its delivery does.
    type: bool
    default: false
  wait_timeout:
    description:
      - How many seconds to wait before the task fails. The capture itself goes on.
    type: int
    default: 600
  fail_on_loss:
    description:
      - With I(wait=true), fail if packets were lost, or nobody knows. Otherwise that is a warning.
    type: bool
    default: false
  download:
    description:
      - A folder on the host. The files of a capture that has ended are put into a folder in it that has the capture's id
        as its name. Folders are made where they are not there. Only for captures without I(destination).
      - With I(state=started) this needs I(wait=true).
    type: path
  filter:
    description:
      - Which packets, in tcpdump's filter language (C(pcap-filter(7))). Without any filter, all.
    type: str
  filter_v1:
    description:
      - Which packets, as fields that all must match. With I(filter) too, both must match.
    type: dict
    suboptions:
      source_address:
        description: An address or a network.
        type: str
      source_port:
        description: A port.
        type: int
      destination_address:
        description: An address or a network.
        type: str
      destination_port:
        description: A port.
        type: int
      protocol:
        description: An IP protocol's number or name.
        type: str
  type:
    description:
      - C(full) captures whole packets, C(simple) the first 160 bytes of one in 100.
    type: str
    choices: [full, simple]
  interfaces:
    description:
      - Only these interfaces, in and out, as Ethernet frames. C(*) may stand at a name's end.
    type: list
    elements: str
  hooks:
    description:
      - Where in the kernel packets are seen.
    type: list
    elements: str
    choices: [prerouting, input, forward, output, postrouting, ingress, egress]
  snaplen:
    description:
      - How many bytes of each packet to keep. 0 is all.
    type: int
  sample:
    description:
      - Keep one in so many.
    type: int
  sample_by:
    description:
      - Whether one in so many packets or flows is kept.
    type: str
    choices: [packet, flow]
  headers_only:
    description:
      - Cut every packet at its payload.
    type: bool
  annotate:
    description:
      - Add mark, connection tracking and socket owner to packets as comments.
    type: bool
  time_limit:
    description:
      - When to end, as C(90s), C(5m), C(1h30m) or seconds.
    type: str
  byte_limit:
    description:
      - How large the files may become together, as C(10mb), C(2gb) or bytes.
    type: str
  packet_limit:
    description:
      - How many packets to capture, exactly.
    type: int
  on_overload:
    description:
      - What to do above the host's packet rate.
    type: str
    choices: [sample, stop]
  format:
    description:
      - The format of the files.
    type: str
    choices: [pcapng, pcap]
  link_type:
    description:
      - What packets begin with in the files.
    type: str
    choices: [auto, ethernet, raw, sll2]
  segment_size:
    description:
      - The size at which a new file is begun.
    type: str
  segment_time:
    description:
      - The time after which a new file is begun. C(0) is by size only.
    type: str
  ring:
    description:
      - Keep only so many of the newest files. 0 is all.
    type: int
  destination:
    description:
      - The name of the destination to deliver to. Without it the files are kept on the host (I(download)).
    type: str
  check_destination:
    description:
      - Whether the destination has to work before the first packet is captured.
    type: bool
  labels:
    description:
      - Names and values that capd remembers with the capture, also for the path at the destination.
    type: dict
  exclude:
    description:
      - Flows that are never captured, in either direction.
    type: list
    elements: dict
    suboptions:
      source:
        description: An address.
        type: str
      source_port:
        description: A port.
        type: int
      destination:
        description: An address.
        type: str
      destination_port:
        description: A port.
        type: int
attributes:
  check_mode:
    description: Tells what would be done, and compiles the filter.
    support: full
  diff_mode:
    description: Shows the settings of a capture before and after, or its state.
    support: full
extends_documentation_fragment:
  - capd.capd.capctl
seealso:
  - module: capd.capd.capd_destination_check
author:
  - capd maintainers (@capd)
'''

EXAMPLES = r'''
- name: Capture DNS for a minute on every router of the play, deliver it, and wait for that
  capd.capd.capd_capture:
    name: ticket-1234
    filter: udp port 53
    time_limit: 1m
    destination: soc
    labels:
      ticket: NET-1234
    wait: true

- name: Begin on all routers at once
  capd.capd.capd_capture:
    name: voip-drops
    filter: udp port 5060 and host 192.0.2.7
    time_limit: 1h

- name: End it on all routers, and put the files into a folder there
  capd.capd.capd_capture:
    name: voip-drops
    state: stopped
    wait: true
    download: /var/tmp/voip-drops

- name: Forget it
  capd.capd.capd_capture:
    name: voip-drops
    state: absent
'''

RETURN = r'''
capture:
  description:
    - The capture as C(capctl --json show) tells it, of which the most important parts are here.
    - C(null) where there is none (I(state=absent), or I(state=stopped) where there never was one, or check mode).
  returned: always
  type: dict
  contains:
    id:
      description: 32 hexadecimal digits.
      type: str
      sample: 0f8c2d5b9e7a4c1d8f3b6a5e4d7c2b1a
    host:
      description: The host's name, as capd says it.
      type: str
      sample: edge-1
    status:
      description: One of pending, running, delivering, complete, failed.
      type: str
      sample: complete
    stop_reason:
      description: Why it ended.
      type: str
      sample: time_limit
    packets:
      description:
        - Counts. C(matched) is C(captured) and C(lost) and C(discarded) together.
        - C(null) is what is not known, as C(lost) is after capd was killed.
      type: dict
      sample: {seen: 10020, sampled_out: 0, limited: 0, matched: 10020, captured: 10000, lost: 0, discarded: 20}
    files:
      description: The files, each with C(name), C(status), C(packets), C(bytes), C(sha256), and C(url) where it was delivered.
      type: list
      elements: dict
    error:
      description: What went wrong, with C(code) and C(message).
      type: dict
actions:
  description: What was done, or would be in check mode, in order.
  returned: always
  type: list
  elements: str
  sample: [start]
downloaded:
  description: The paths of the capture's files in the folder I(download).
  returned: with I(download), not in check mode
  type: list
  elements: str
  sample: [/var/tmp/voip-drops/0f8c2d5b9e7a4c1d8f3b6a5e4d7c2b1a/0001.pcapng]
'''

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.capd.capd.plugins.module_utils.capctl import ARGUMENTS, UNREACHABLE, Capctl, CapctlError
from ansible_collections.capd.capd.plugins.module_utils.request import difference, excerpt, request_of

FINISHED = ('complete', 'failed')


class Manager(object):
    """Brings the captures of one name into a state. Everything done is in actions."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.capctl = Capctl(module)
        self.wanted = request_of(module.params)
        self.actions = []
        self.diff = {}

    def do(self, action, *arguments, **options):
        """Runs a command that changes something, unless in check mode."""
        self.actions.append(action)
        if self.module.check_mode:
            return None
        return self.capctl.run(*arguments, **options)

    def all(self):
        """The captures of the name, newest first."""
        return [c for c in self.capctl.run('list', '--all') if c.get('name') == self.params['name']]

    def wait(self, capture, what, reached):
        """Asks for a capture until it has reached what was wanted, and gives it."""
        deadline = time.time() + self.params['wait_timeout']
        pause = 0.1
        while not reached(capture):
            if time.time() > deadline:
                self.module.fail_json(
                    msg='after %d s capture %s is not %s but %s' % (self.params['wait_timeout'], self.params['name'], what, capture['status']),
                    hint='raise wait_timeout, or give a time_limit that ends before it', capture=capture, actions=self.actions, changed=bool(self.actions))
            time.sleep(pause)
            pause = min(pause * 2, 2)
            try:
                capture = self.capctl.run('show', capture['id'])
            except CapctlError as e:
                if e.code != UNREACHABLE:  # a capd that is restarted comes back
                    raise
        return capture

    def started(self):
        capture = next(iter(self.all()), None)
        if capture is None:
            return self.start(None)
        differs = difference(self.wanted, capture)
        if capture['status'] not in FINISHED:
            if not differs:
                return capture
            if not self.params['replace']:
                self.module.fail_json(
                    msg='capture %s is %s with other settings: %s' % (
                        self.params['name'], capture['status'],
                        ', '.join('%s is %s, not %s' % (k, excerpt(capture, k), self.wanted[k]) for k in differs)),
                    hint='replace=true stops it and starts another; or choose another name', capture=capture, actions=[])
            self.do('stop', 'stop', capture['id'])
            if not self.module.check_mode:
                self.wait(capture, 'finished, so that its name is free', lambda c: c['status'] in FINISHED)
            return self.start(capture)
        if self.params['again'] or differs or (capture['status'] == 'failed' and not capture.get('started')):
            return self.start(capture)
        if capture['status'] == 'failed' and capture.get('destination'):
            self.diff = states(capture, 'delivering')
            return self.do('retry', 'retry', capture['id']) or capture
        return capture

    def start(self, before):
        """Starts the capture; before is the one that it follows, None if there is none."""
        self.diff = dict(
            before=dict((k, before.get(k)) for k in self.wanted) if before else {},
            after=self.wanted,
            before_header='capture %s: %s' % (self.params['name'], before['status'] if before else 'none'),
            after_header='capture %s: running' % self.params['name'],
        )
        if self.module.check_mode:
            self.capctl.run('explain', '--request', '-', data=self.wanted)
        return self.do('start', 'start', '--request', '-', data=self.wanted)

    def stopped(self):
        capture = next(iter(self.all()), None)
        if capture and capture['status'] in ('pending', 'running'):
            self.diff = states(capture, 'stopped')
            capture = self.do('stop', 'stop', capture['id']) or capture
        return capture

    def absent(self):
        for capture in self.all():
            self.diff = states(capture, 'absent')
            if capture['status'] in ('pending', 'running'):
                capture = self.do('stop', 'stop', capture['id']) or capture
            if not self.module.check_mode and not self.params['force']:
                self.wait(capture, 'delivered', lambda c: c['status'] in FINISHED)
            self.do('remove', 'rm', *((['--force'] if self.params['force'] else []) + [capture['id']]))
        return None

    def download(self, capture):
        """Puts a capture's files into the folder of its id and gives their paths, None where that was not done."""
        if capture.get('destination'):
            self.module.fail_json(
                msg='capture %s is delivered to %s, so there is nothing to download' % (self.params['name'], capture['destination']),
                hint='leave destination out, or fetch the files from there', capture=capture, actions=self.actions)
        folder = os.path.join(self.params['download'], capture['id'])
        paths = [os.path.join(folder, f['name']) for f in capture.get('files') or [] if f['status'] != 'removed']
        # A file has its name only when it is whole, and the folder is this capture's alone.
        if not all(os.path.exists(p) for p in paths):
            self.do('download', 'download', '--force', '--output', folder, capture['id'])
            if self.module.check_mode:
                return None
        return paths

    def run(self):
        capture = dict(started=self.started, stopped=self.stopped, absent=self.absent)[self.params['state']]()
        pending = self.module.check_mode and self.actions  # what would follow is not known
        if capture and self.params['wait'] and not pending:
            capture = self.wait(capture, 'finished', lambda c: c['status'] in FINISHED)
        result = dict(capture=capture)
        if capture and self.params['download'] and not pending:
            if capture['status'] not in FINISHED:
                capture = self.wait(capture, 'finished', lambda c: c['status'] in FINISHED)
            paths = self.download(capture)
            if paths is not None:
                result['downloaded'] = paths
        result.update(capture=capture, actions=self.actions, changed=bool(self.actions))
        if self.diff:
            result['diff'] = self.diff
        self.judge(capture, result)
        return result

    def judge(self, capture, result):
        """Warns of what a person should know, and fails where what was awaited did not succeed."""
        for warning in (capture or {}).get('warnings') or []:
            self.module.warn('capture %s: %s' % (self.params['name'], warning['message']))
        if not capture or not self.params['wait']:
            return
        if capture['status'] == 'failed':
            error = capture.get('error') or {}
            msg = 'capture %s failed: %s' % (self.params['name'], error.get('message') or 'capd does not say why')
            if error.get('hint'):
                msg += '. Hint: ' + error['hint']
            self.module.fail_json(msg=msg, hint=error.get('hint', ''), **result)
        lost = capture['packets']['lost']
        if lost == 0:
            return
        msg = 'capture %s lost %s packets of %s' % (self.params['name'], lost, capture['packets'].get('matched') or 'an unknown number')
        if lost is None:
            msg = 'capture %s: what it lost is not known (%s)' % (self.params['name'], capture.get('stop_reason'))
        if self.params['fail_on_loss']:
            self.module.fail_json(msg=msg, **result)
        self.module.warn(msg)


def states(capture, after):
    """A diff of states."""
    return dict(
        before='%s\n' % capture['status'], after='%s\n' % after,
        before_header='capture %s' % capture['name'], after_header='capture %s' % capture['name'])


def main():
    ends = dict(source=dict(type='str'), source_port=dict(type='int'), destination=dict(type='str'), destination_port=dict(type='int'))
    module = AnsibleModule(
        argument_spec=dict(
            name=dict(type='str', required=True),
            state=dict(type='str', choices=['started', 'stopped', 'absent'], default='started'),
            again=dict(type='bool', default=False),
            replace=dict(type='bool', default=False),
            force=dict(type='bool', default=False),
            wait=dict(type='bool', default=False),
            wait_timeout=dict(type='int', default=600),
            fail_on_loss=dict(type='bool', default=False),
            download=dict(type='path'),
            filter=dict(type='str'),
            filter_v1=dict(type='dict', options=dict(
                source_address=dict(type='str'),
                source_port=dict(type='int'),
                destination_address=dict(type='str'),
                destination_port=dict(type='int'),
                protocol=dict(type='str'),
            )),
            type=dict(type='str', choices=['full', 'simple']),
            interfaces=dict(type='list', elements='str'),
            hooks=dict(type='list', elements='str', choices=['prerouting', 'input', 'forward', 'output', 'postrouting', 'ingress', 'egress']),
            snaplen=dict(type='int'),
            sample=dict(type='int'),
            sample_by=dict(type='str', choices=['packet', 'flow']),
            headers_only=dict(type='bool'),
            annotate=dict(type='bool'),
            time_limit=dict(type='str'),
            byte_limit=dict(type='str'),
            packet_limit=dict(type='int'),
            on_overload=dict(type='str', choices=['sample', 'stop']),
            format=dict(type='str', choices=['pcapng', 'pcap']),
            link_type=dict(type='str', choices=['auto', 'ethernet', 'raw', 'sll2']),
            segment_size=dict(type='str'),
            segment_time=dict(type='str'),
            ring=dict(type='int'),
            destination=dict(type='str'),
            check_destination=dict(type='bool'),
            labels=dict(type='dict'),
            exclude=dict(type='list', elements='dict', options=ends),
            **ARGUMENTS
        ),
        supports_check_mode=True,
    )
    params = module.params
    if params['wait_timeout'] < 1:
        module.fail_json(msg='wait_timeout is %d: seconds, at least 1' % params['wait_timeout'])
    if params['download'] and params['state'] == 'absent':
        module.fail_json(msg='download and state=absent exclude each other: download first, in a task of its own')
    if params['download'] and params['state'] == 'started' and not params['wait']:
        module.fail_json(msg='download needs wait=true: a capture that has just begun has no files')
    try:
        manager = Manager(module)
        result = manager.run()
    except CapctlError as e:
        e.fail(module)
    module.exit_json(**result)


if __name__ == '__main__':
    main()
