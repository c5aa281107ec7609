"A property test tries the same examples each time, so that one commit has one verdict; `pytest -m hypothesis --hypothesis-profile=default` looks for new ones"
from hypothesis import settings

settings.register_profile('same', derandomize=True, deadline=None, print_blob=True)
settings.load_profile('same')
