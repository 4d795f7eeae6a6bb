"""Holds events, one a line on standard input, against the published OCSF schema: python3 ocsf.py FOLDER
FOLDER is what tests/schema put in place. Names the first event that does not fit."""
import json, sys

sys.path.insert(0, sys.argv[1])
import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

schemas = OcsfJsonSchemaEmbedded(get_ocsf_schema(version='1.5.0'))
validators, count = {}, 0
for line in sys.stdin:
    event = json.loads(line)
    key = (event['class_uid'], tuple(event['metadata'].get('profiles', [])))
    if key not in validators:
        name = schemas.lookup_class_name_from_uid(class_uid=key[0])
        validators[key] = jsonschema.Draft202012Validator(schemas.get_class_schema(class_name=name, profiles=list(key[1])))
    faults = sorted(validators[key].iter_errors(event), key=lambda fault: list(map(str, fault.path)))
    if faults:
        raise SystemExit('\n'.join(f'{"/".join(map(str, fault.path))}: {fault.message}' for fault in faults) + f'\n{line}')
    count += 1
print(f'{count} events fit {len(validators)} classes')
