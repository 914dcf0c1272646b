"""The prompt format, as a Jinja template.

It is that of LLaDA-V's inference (arXiv:2505.16933): nothing stands between a picture and the text after it.
`image_separator="\\n"`, a template variable, gives what its training saw.
"""

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

CHAT_TEMPLATE = """\
{%- set separator = image_separator if image_separator is defined else '' -%}
{%- macro render(content) -%}
  {%- if content is string -%}
    {{- content | replace('<image>\\n', '<image>' + separator) -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}{{- '<image>' + separator -}}
      {%- elif part.type == 'video' -%}{{- '<video>' + separator -}}
      {%- elif part.type == 'text' -%}{{- part.text -}}
      {%- else -%}{{- raise_exception('a content part has type ' + part.type + '; use text, image or video') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{{- '<|startoftext|>' -}}
{%- if messages[0].role != 'system' -%}
  {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + default_system_prompt + '<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
  {{- render(message.content) | trim -}}
  {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""


def build_chat_template(default_system_prompt: str = DEFAULT_SYSTEM_PROMPT) -> str:
    """The Jinja template of a checkpoint.

    Args:
        default_system_prompt: what a chat without a system message starts with.

    Returns:
        The template; variables are those of transformers and `image_separator`.
    """
    literal = default_system_prompt.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"{{%- set default_system_prompt = '{literal}' -%}}\n" + CHAT_TEMPLATE
