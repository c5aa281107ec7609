import shutil
import pytest
from quantlib.journal.store import Journal
from quantlib.core.settings import Home, of_home
from quantlib.learning.sample import sample_home


@pytest.fixture(scope='session')
def day_on_disk(tmp_path_factory):
    "A home with a whole day, made once"
    folder = tmp_path_factory.mktemp('day')
    home, journal, _, now = sample_home(folder)
    journal.close()
    return folder, now


@pytest.fixture
def day(day_on_disk, tmp_path):
    "A private copy of the day: home, journal, settings, now"
    folder, now = day_on_disk
    shutil.copytree(folder, tmp_path/'home')
    home = Home(tmp_path/'home')
    journal = Journal(home.journal)
    yield home, journal, of_home(home), now
    journal.close()
