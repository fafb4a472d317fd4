"""The chat templates of composed LLaVAs, and the token that stands for an image in them."""

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Images come first in their message. LLaVA tokenises the text after an image by itself, so that a SentencePiece
# tokenizer puts its word mark before the line break. Here the blank after <image> gives the same two tokens.
LLAVA_V1 = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'][0]['text'] }}{% else %}" + SYSTEM + "{% endif %}"
    "{{ ' ' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE + " \n{% endif %}{% endfor %}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') }}"
    "{% elif message['role'] == 'assistant' %} ASSISTANT:{% generation %}"
    " {{ message['content'] | map(attribute='text') | join('\n') }}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
AS_TEXT = (
    "{%- set found = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set words = message['content'] -%}{%- else -%}{%- set words -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '" + IMAGE + "\n' }}{%- endfor -%}"
    "{{- message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') -}}"
    "{%- endset -%}{%- endif -%}"
    "{%- set found.messages = found.messages + [dict(message, content=words)] -%}"
    "{%- endfor -%}{%- set messages = found.messages -%}"
)
"""The beginning of a chat template; the language model's own template follows it. A language model's template expects
each message as one text, so this beginning joins the parts of each message into one text, images first."""
