"""Vocabulary expansion: learns pieces on a corpus and adds them to a base tokenizer."""
