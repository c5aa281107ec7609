"""One zygote for the tests of this folder"""
import nbformat, pytest
from quantlib.schedule.kernels import warm_kernels

@pytest.fixture(scope='session')
def zygote(tmp_path_factory):
    with warm_kernels(tmp_path_factory.mktemp('home')) as z:
        assert z.ready(120)
        yield z

@pytest.fixture
def notebook(tmp_path):
    "notebook(cell, cell, ...): path of a notebook whose first cell is tagged `parameters`"
    def make(*cells, tags=(('parameters',),)):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells],
            metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
        for cell, tag in zip(nb.cells, tags): cell.metadata['tags'] = list(tag)
        path = tmp_path/f'nb{len(list(tmp_path.glob("nb*.ipynb")))}.ipynb'
        nbformat.write(nb, path)
        return path
    return make
