"""Records to rows of token ids: chat, packing, mixing, streaming."""
