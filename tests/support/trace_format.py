"""The trace event format as a schema."""

NUMBER = {"type": "integer", "minimum": 0}
EVENT = {
    "type": "object",
    "required": ["ph", "name", "pid", "tid"],
    "properties": {"name": {"type": "string"}, "pid": NUMBER, "tid": NUMBER},
    "oneOf": [
        {
            "properties": {"ph": {"const": "X"}, "ts": NUMBER, "dur": NUMBER},
            "required": ["ts", "dur", "cat"],
        },
        {
            "properties": {"ph": {"const": "i"}, "ts": NUMBER, "s": {"enum": ["g", "p", "t"]}},
            "required": ["ts", "s"],
        },
        {
            "properties": {
                "ph": {"const": "M"},
                "name": {"enum": ["process_name", "thread_name"]},
                "args": {"type": "object", "required": ["name"]},
            },
            "required": ["args"],
        },
    ],
}
TRACE = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "traceEvents": {"type": "array", "items": EVENT},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
    },
}
"""Of "Trace Event Format" (The Chromium Authors) what arcd writes."""
