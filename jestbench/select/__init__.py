"""What is a pair worth, and which pairs are chosen? Scores in strips, the draws, the losses, a policy's contract.

May import `jestbench.cost` and what stands below it.
A policy may use the names below and `jestbench.batch`.
"""

from jestbench.select.draws import Draw as Draw
from jestbench.select.draws import choice_statistics as choice_statistics
from jestbench.select.draws import conditional_logits as conditional_logits
from jestbench.select.draws import draw_statistics as draw_statistics
from jestbench.select.draws import gumbel_top_k as gumbel_top_k
from jestbench.select.draws import independent_draw as independent_draw
from jestbench.select.draws import joint_draw as joint_draw
from jestbench.select.draws import joint_sample as joint_sample
from jestbench.select.draws import top_k as top_k
from jestbench.select.draws import uniform_draw as uniform_draw
from jestbench.select.given import NO_WORD as NO_WORD
from jestbench.select.given import Moment as Moment
from jestbench.select.given import Remembered as Remembered
from jestbench.select.given import Trained as Trained
from jestbench.select.losses import Equal as Equal
from jestbench.select.losses import LossName as LossName
from jestbench.select.policy import Policy as Policy
from jestbench.select.policy import PolicyError as PolicyError
from jestbench.select.policy import StatefulPolicy as StatefulPolicy
from jestbench.select.remembering import LearningPolicy as LearningPolicy
from jestbench.select.remembering import LeavingPolicy as LeavingPolicy
from jestbench.select.scores import Embeddings as Embeddings
from jestbench.select.scores import NonFiniteScore as NonFiniteScore
from jestbench.select.scores import NoSuchScore as NoSuchScore
from jestbench.select.scores import PairLoss as PairLoss
from jestbench.select.scores import Role as Role
from jestbench.select.scores import ScoreError as ScoreError
from jestbench.select.scores import Scores as Scores
from jestbench.select.scores import Side as Side
