#!/usr/bin/python3
"""Renders chat templates as Hugging Face Transformers does: the oracle of tests/e2e/templates.test.mjs.

A line of standard input is a JSON object: "template", "now" (Unix seconds, what strftime_now shows, in UTC), and
the variables of the template (messages, tools, documents, add_generation_prompt, bos_token ...). Answers each
with a line {"text": ...} or {"error": ...}.

The environment is that of transformers.utils.chat_template_utils._compile_jinja_template. Two things differ: the
time is fixed, and {% generation %} does not record where its text ends up.

Usage: tests/tools/render_templates.py < lines   (Debian's python3-jinja2)
"""

import datetime
import functools
import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

now = 0


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        # As in Transformers a block of a call: what is set inside stays inside.
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own tojson escapes HTML.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime.fromtimestamp(now, datetime.timezone.utc).strftime(format)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = strftime_now


# An error is kept as well: compiling is what takes the time.
@functools.lru_cache(maxsize=None)
def compile_template(text):
    try:
        return environment.from_string(text)
    except jinja2.exceptions.TemplateSyntaxError as error:
        return error


def render(variables):
    global now
    now = variables.pop("now", 0)
    template = compile_template(variables.pop("template"))
    if isinstance(template, Exception):
        raise template
    return template.render(**variables)


def main():
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    for line in sys.stdin:
        try:
            answer = {"text": render(json.loads(line))}
        except Exception as error:  # whatever a template raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        # Escaped: JavaScript, too, then sees no line end inside a string.
        print(json.dumps(answer))


main()
