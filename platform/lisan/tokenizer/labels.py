"""Examples: token ids with a label for every trained token.

A label equals the id at its own position or is IGNORE_INDEX; the loss does the shifting. Everything between the chat template
and the rows on storage speaks in these.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE_INDEX = -100
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Example:
    input_ids: Ids
    labels: Ids

    def __len__(self) -> int:
        return len(self.input_ids)


Item = tuple[Example, ...]
"One document or conversation, or the chosen and the rejected reply of a preference, in this order."
