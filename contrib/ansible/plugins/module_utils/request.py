# SPDX-License-Identifier: Apache-2.0
"""A capture's settings: from a task's options to capd's request, and compared with a capture."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import re

FIELDS = (
    'name', 'filter', 'filter_v1', 'type', 'interfaces', 'hooks', 'snaplen', 'sample', 'sample_by', 'headers_only', 'annotate',
    'time_limit', 'byte_limit', 'packet_limit', 'on_overload', 'format', 'link_type', 'segment_size', 'segment_time', 'ring',
    'destination', 'labels', 'exclude',
)
SIZES = ('byte_limit', 'segment_size')
TIMES = ('time_limit', 'segment_time')
UNITS = {'b': 1, 'kb': 10 ** 3, 'mb': 10 ** 6, 'gb': 10 ** 9, 'kib': 2 ** 10, 'mib': 2 ** 20, 'gib': 2 ** 30, '': 1}
# As Go writes durations, which is how capctl reads them.
SPANS = {'ns': 1e-9, 'us': 1e-6, u'\u00b5s': 1e-6, 'ms': 1e-3, 's': 1, 'm': 60, 'h': 3600}
SPAN = re.compile(u'([0-9]*\\.?[0-9]+|[0-9]+\\.)(ns|us|\u00b5s|ms|s|m|h)')


def request_of(params):
    """The options that were given, as the JSON that capctl start --request takes."""
    request = dict((k, given(params[k])) for k in FIELDS if params.get(k) is not None)
    if params.get('labels') is not None:
        request['labels'] = dict((k, '%s' % v) for k, v in params['labels'].items())
    if params.get('check_destination') is not None:
        request['check'] = params['check_destination']
    return request


def given(value):
    """A value without suboptions that were not given."""
    if isinstance(value, dict):
        return dict((k, given(v)) for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return [given(v) for v in value]
    return value


def difference(wanted, capture):
    """The fields of a request that are in force otherwise, in the order of FIELDS.

    What the request leaves out is the host's choice, and no difference.
    """
    return [k for k in FIELDS if k in wanted and comparable(k, wanted[k]) != comparable(k, excerpt(capture, k, wanted[k]))]


def excerpt(capture, field, wanted=None):
    """What a capture says of a field. It leaves out what is empty or off.

    Of lists of flows that are excluded, only those that are wanted count: capctl adds the
    SSH connection's.
    """
    value = capture.get(field)
    if field == 'exclude' and wanted:
        flows = [comparable(field, [f]) for f in value or []]
        return [f for f in wanted if comparable(field, [f]) in flows]
    return value


def comparable(field, value):
    """A form in which what means the same is the same."""
    if field in SIZES:
        return size(value)
    if field in TIMES:
        return seconds(value)
    if field == 'filter':
        return ' '.join((value or '').split())
    if field in ('interfaces', 'hooks'):
        return sorted(value or [])
    if field in ('filter_v1', 'labels'):
        return dict((k, '%s' % v) for k, v in (value or {}).items() if v not in (None, '', 0, '0'))
    if field == 'exclude':
        return [sorted((k, '%s' % v) for k, v in f.items() if v) for f in value or []]
    return value or None


def size(value):
    """Bytes; what is no size is given back, for capd to refuse."""
    m = re.match(r'^\s*([0-9.]+)\s*([a-z]*)\s*$', ('%s' % value).lower())
    try:
        return int(round(float(m.group(1)) * UNITS[m.group(2)]))
    except (AttributeError, KeyError, ValueError):
        return value


def seconds(value):
    """Seconds; what is no duration is given back, for capd to refuse."""
    text = ('%s' % value).strip()
    try:
        return round(float(text), 9)
    except ValueError:
        pass
    if SPAN.sub('', text):
        return value
    return round(sum(float(n) * SPANS[unit] for n, unit in SPAN.findall(text)), 9)
