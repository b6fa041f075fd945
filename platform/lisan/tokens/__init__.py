"""Records to rows of token ids: vocabulary, chat, packing, mixing, streaming."""
