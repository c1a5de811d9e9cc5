"""A slippery grid whose optimum is known: walk to the goal, past a pit, where one step in five goes to a side.

`solve_grid` is the optimum by value iteration, `policy_return` what a policy is worth; both are exact.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.environments.batch_environment import RUNNING, TERMINATED, TRUNCATED, BatchEnvironment
from kernels.jit import kernel
from kernels.rng import randint, uniform

SIZE = 5  # cells of a side
CELLS, ACTIONS = SIZE * SIZE, 4  # up, right, down, left
GOAL, PIT = CELLS - 1, CELLS - 2  # cells; the pit lies beside the goal
SLIP = 0.1  # probability of each of the two sides
STEP_REWARD, GOAL_REWARD, PIT_REWARD = -0.02, 1.0, -1.0
MAX_STEPS = 100
CELL, SEED, STEP = range(3)  # columns of a state


@kernel
def move(cell: int, direction: int) -> int:
    """The cell beside `cell`; itself at a wall."""
    row, column = cell // SIZE, cell % SIZE
    if direction == 0:
        row = max(row - 1, 0)
    elif direction == 1:
        column = min(column + 1, SIZE - 1)
    elif direction == 2:
        row = min(row + 1, SIZE - 1)
    else:
        column = max(column - 1, 0)
    return row * SIZE + column


@kernel
def reset(state: NDArray[np.float64], b: int, seed: int) -> None:
    """Begin an episode of row b on any cell but the two last ones."""
    state[b, CELL], state[b, SEED], state[b, STEP] = randint(PIT, seed, 0, 0), seed, 0


@kernel
def step(
    state: NDArray[np.float64], reward: NDArray[np.float32], ended: NDArray[np.int8], action: NDArray[np.int32]
) -> None:
    """Walk one cell in each row."""
    for b in range(state.shape[0]):
        state[b, STEP] += 1
        u, direction = uniform(int(state[b, SEED]), 1, int(state[b, STEP])), action[b]
        if u < 2 * SLIP:
            direction = (direction + (1 if u < SLIP else 3)) % ACTIONS
        cell = move(int(state[b, CELL]), direction)
        state[b, CELL] = cell
        reward[b] = GOAL_REWARD if cell == GOAL else PIT_REWARD if cell == PIT else STEP_REWARD
        ended[b] = TERMINATED if cell >= PIT else TRUNCATED if state[b, STEP] >= MAX_STEPS else RUNNING


@kernel
def observe(observation: NDArray[np.float32], legal: NDArray[np.bool_], state: NDArray[np.float64]) -> None:
    """Write the cell as a one-hot; every action is legal."""
    for b in range(state.shape[0]):
        observation[b, :] = 0.0
        observation[b, int(state[b, CELL])] = 1.0
        legal[b, :] = True


GRID = BatchEnvironment(ACTIONS, CELLS, 3, True, 1.0, 1.5, reset, step, observe)


def transition_values(value: NDArray[np.float64], discount: float) -> NDArray[np.float64]:
    """[CELLS, ACTIONS] value of each action, where the cells are worth `value` [CELLS]; 0 on the two last ones."""
    landed = np.array([[move(cell, direction) for direction in range(ACTIONS)] for cell in range(PIT)])
    gain = np.full(CELLS, STEP_REWARD)
    gain[PIT], gain[GOAL] = PIT_REWARD, GOAL_REWARD
    worth = (gain + discount * value)[landed]
    q = np.zeros((CELLS, ACTIONS))
    q[:PIT] = (1 - 2 * SLIP) * worth + SLIP * (np.roll(worth, -1, axis=1) + np.roll(worth, 1, axis=1))
    return q


def solve_grid(discount: float) -> float:
    """The mean value of the cells on which episodes begin, under the best policy."""
    value = np.zeros(CELLS)
    for _ in range(2 * MAX_STEPS):
        value = transition_values(value, discount).max(axis=1)
    return float(value[:PIT].mean())


def policy_return(policy: NDArray[np.int64], discount: float) -> float:
    """The same mean under the actions policy [CELLS]."""
    value = np.zeros(CELLS)
    for _ in range(2 * MAX_STEPS):
        value = transition_values(value, discount)[np.arange(CELLS), policy]
    return float(value[:PIT].mean())
