"""A cursor that is stopped and goes on, against one that is not."""

import json


def assert_goes_on(source, stops, order, told, goes_on_at_end):
    """Take records or skip some, go on from each state in a new cursor, and find all records once; return them.

    Args:
        source: the source.
        stops: for each cursor whether it skips, and how many.
        order: as for `Source.records`.
        told: what of a record is compared.
        goes_on_at_end: whether there is a state to go on from at the end; a mixture has none.
    """
    whole = [told(record) for record in source.records(order)]
    found, state = [], None
    for skips, count in stops:
        cursor = source.records(order, json.loads(json.dumps(state)))
        if skips:
            assert cursor.skip(count) == min(count, len(whole) - len(found))
            found += whole[len(found) : len(found) + count]
        else:
            found += [told(record) for record in [next(cursor, None) for _ in range(count)] if record]
        state = cursor.state()
        if len(found) == len(whole) and not goes_on_at_end:
            break
    else:
        found += [told(record) for record in source.records(order, state)]
    assert found == whole
    return whole
