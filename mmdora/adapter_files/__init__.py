"""Adapter files in the format of PEFT, written and read; the only folder that knows how PEFT spells things."""
